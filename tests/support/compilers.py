"""A compiler that only looks like one."""

# All that a file has to compile to here is an object; -v and the like are answered by the real one.
COMPILER = """#!/bin/sh
case " $* " in
  *" -c "*) ;;
  *) exec c++ "$@" ;;
esac
while [ $# -gt 0 ]; do
  [ "$1" = -o ] && object=$2
  case "$1" in -f*) flags="$flags$1 " ;; esac
  shift
done
echo "$flags-o $object" >>"$COMPILED"
exec c++ -x c -c /dev/null -o "$object"
"""


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
