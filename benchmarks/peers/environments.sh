#!/usr/bin/env bash
# Make one virtual environment a tool from PyPI:
#
#     bash benchmarks/peers/environments.sh FOLDER [TOOL ...]
#
# Pythons are looked up as python3.10 and so on; PYTHON_3_10=/path/to/python3.10 names another.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$1
shift
declare -A python=([scarches]=3.11 [trvaep]=3.11 [cpa]=3.10 [pertpy]=3.12 [scpram]=3.10 [biolord]=3.11)
for tool in "${@:-${!python[@]}}"; do
    named=PYTHON_${python[$tool]//./_}
    "${!named:-python${python[$tool]}}" -m venv "$folder/$tool"
    # pip alone tries old releases of CPA's dependencies for a quarter of an hour.
    "$folder/$tool/bin/pip" install --quiet uv
    "$folder/$tool/bin/uv" pip install --quiet --python "$folder/$tool/bin/python" \
        -r "$here/requirements/$tool.txt"
    "$folder/$tool/bin/pip" freeze > "$folder/$tool/versions.txt"
    echo "$tool is in $folder/$tool"
done
