#!/usr/bin/env bash
# Puts Keycloak, for the tests, into .venv/keycloak, from Maven's registry. Without Java or Maven it says what is
# missing and does nothing: the tests that need it then skip, and say so too.
set -euo pipefail
cd "$(dirname "$0")/.."

checksum=27a6535553c3cdcd083872ba40629efafb3475e3b758e0c6f691395561dd0f1f
wanted=17

java_version=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p') || true
if [ -z "$java_version" ] || [ "$java_version" -lt "$wanted" ]; then
    echo "      No Java $wanted or newer on this machine: the tests with Keycloak will be skipped."
    exit
fi
if ! command -v mvn >/dev/null; then
    echo "      No Maven (mvn) on this machine: the tests with Keycloak will be skipped."
    exit
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! mvn --quiet --batch-mode --file tools/keycloak/pom.xml dependency:copy-dependencies \
    -DoutputDirectory="$work" >"$work/log" 2>&1; then
    tail -n 20 "$work/log" >&2
    echo "      Maven cannot get Keycloak: the tests with Keycloak will be skipped." >&2
    exit
fi
echo "$checksum  $(ls "$work"/keycloak-quarkus-dist-*.zip)" | sha256sum --check --quiet
.venv/bin/python -m zipfile --extract "$work"/keycloak-quarkus-dist-*.zip "$work/unpacked"
chmod +x "$work"/unpacked/*/bin/*.sh
rm -rf .venv/keycloak
mv "$work"/unpacked/keycloak-* .venv/keycloak
