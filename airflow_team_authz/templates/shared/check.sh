#!/bin/sh
# What CI checks, all of it or the steps that are named: `./check.sh tests gate`. Takes opa 1.22.2 or newer, regal, and
# the package airflow-team-authz with its extra `bundles`.
set -eu
cd "$(dirname "$0")"

format() {
    find . -name '*.rego' ! -path './.team-authz/*' ! -path './.regal/*' -exec opa fmt --fail --list {} +
}

# First what everybody may type. Then the same, strictly, against the schema of questions and the built-in functions that
# a policy may call; Regal's own rules call others.
types() {
    opa check .
    opa check --strict --ignore .regal \
        --schema .team-authz/schemas --capabilities .team-authz/capabilities.json .
}

# As `opa test .`, which takes workflows for data: those of one name in two of them would be a conflict.
tests() {
    opa test --ignore .github --fail-on-empty .
}

lint() {
    regal lint .
}

# What keeps a team's package from being published, such as rules that no test comes to: `opa test --coverage` would count
# the packaged rules too. A team's repository has the packaged role table beside it, the platform's has its own: there,
# rules that read what no question has, whatever their metadata says, and rules that no engine loads.
gate() {
    if [ -d .team-authz/airflow/roles ]; then team-authz bundle check .; else team-authz doctor --rules --policy .; fi
}

for step in ${*:-format types tests lint gate}; do
    echo "== $step"
    "$step"
done
