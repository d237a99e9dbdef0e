"""The training entrypoint behind `cpfast train | compare | report | env`.

It may use anything in cpfast; nothing in cpfast imports it. The flow: `config` -> `data` ->
`loop` (with `models`, `clock`) -> `runfolder` (of `checkpoint`, `files`) -> `report`, `plots`;
`compare` runs the same loop once per arm and seed. `forms` says what a value from a file must look
like.
"""
