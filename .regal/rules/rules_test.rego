package custom.regal.rules.teams_test

import data.custom.regal.rules.teams

parsed(text) := regal.parse_module("policy.rego", text)

alpha(rule) := parsed(concat("\n", ["package teams.alpha", "", rule]))

found(name, module) := count(violations) if {
	violations := teams[name].report with input as module
}

test_reading_what_is_others if {
	every rule in [
		"allow contains 1 if data.teams.beta.x",
		"allow contains 1 if data.teams[input.action].x",
		"allow contains 1 if data.airflow.site.deny",
		"allow contains 1 if count([x | some x in data.teams]) > 0",
		"import data.teams.beta",
	] {
		found("foreign-data", alpha(rule)) == 1
	}
}

test_reading_what_is_its_own if {
	every rule in [
		"allow contains 1 if data.teams.alpha.x",
		`allow contains 1 if "x" in data.airflow.authz.standing.team_ids`,
		"allow contains 1 if data.airflow.roles.platform[_]",
	] {
		found("foreign-data", alpha(rule)) == 0
	}
}

test_entries_are_sets if {
	found("entry-rule", alpha("allow := true")) == 1
	found("entry-rule", alpha("default deny := false")) == 1
	found("entry-rule", alpha("allow.x := 1")) == 1
	found("entry-rule", alpha("allow contains 1")) == 0
	found("entry-rule", parsed("package airflow.site\n\nallow := true")) == 0
}

test_patterns_are_constant if {
	found("constant-pattern", alpha("allow contains 1 if regex.match(input.action, `x`)")) == 1
	found("constant-pattern", alpha("allow contains 1 if regex.match(`x`, input.action)")) == 0
}
