#!/bin/sh
# What CI checks: format, types against the schema of questions, tests, lint. Takes opa 1.22.2 or newer, and regal.
set -eu
cd "$(dirname "$0")"

find . -name '*.rego' ! -path './.team-authz/*' -exec opa fmt --fail --list {} +
opa check --bundle --strict --schema .team-authz/schemas --capabilities .team-authz/capabilities.json .
opa test --bundle --fail-on-empty .
regal lint .
