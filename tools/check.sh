#!/usr/bin/env bash
# Runs every static check and the policy tests, all of them even if one fails, and names those that failed.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

# Raise it when cases are added. Fewer means that tests are no longer found: they would all pass.
EXPECTED_REGO_CASES=1492

failed=()
run() { # run "name" command...
    local name=$1
    shift
    echo "== $name"
    "$@" || failed+=("$name")
}

run "ruff check" ruff check --quiet .
run "ruff format (make format repairs it)" ruff format --check --diff --quiet .
run "mypy" mypy
run "import contracts" lint-imports --no-logo
run "opa fmt (make format repairs it)" opa fmt --fail --diff policies bundles/discovery
run "opa check" opa check --bundle --strict --schema policies/schemas --capabilities policies/capabilities.json policies
run "opa test" tools/rego_tests.py "$EXPECTED_REGO_CASES"
run "regal lint" regal lint policies
run "regal test" regal test .regal/rules
run "the gate on the example teams" team-authz bundle check policies

if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}" >&2
    exit 1
fi
echo "All checks passed."
