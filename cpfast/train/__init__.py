"""Training behind `cpfast train`: one run, from its settings to its table and picture.

It may use anything in cpfast but studies and cli; nothing in the library imports it. The flow:
`config` -> `data` -> `loop` (with `models`, `clock`) -> `runfolder` (of `checkpoint`, `files`) ->
`report`, `plots`. `forms` says what a value from a file must look like.
"""
