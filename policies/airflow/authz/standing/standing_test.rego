package airflow.authz.standing_test

import data.airflow.authz.standing

directory := {
	"groups": {
		"alpha-ops": [{"team_id": "alpha", "role": "op"}],
		"alpha-people": [{"team_id": "alpha"}],
		"both": [{"team_id": "alpha", "role": "viewer"}, {"team_id": "beta", "role": "admin"}],
		"platform": [{"team_id": null, "role": "op"}],
	},
	"roles": {"Beta Users": [{"team_id": "beta", "role": "user"}]},
}

viewer := {"viewer"}

user := {"user", "viewer"}

op := {"op", "user", "viewer"}

admin := {"admin", "op", "user", "viewer"}

# team_roles holds the roles in each team; common and platform those for what is common and for all teams.
cases := {
	"nobody": {"subject": {}, "team_roles": {}, "common": set(), "platform": set()},
	"a member without a role": {
		"subject": {"team_ids": ["alpha"]},
		"team_roles": {"alpha": set()}, "common": set(), "platform": set(),
	},
	"a role without a team counts for what is common": {
		"subject": {"roles": ["op"]},
		"team_roles": {}, "common": op, "platform": set(),
	},
	"a role in a team": {
		"subject": {"team_ids": ["alpha"], "roles": ["user"]},
		"team_roles": {"alpha": user}, "common": user, "platform": set(),
	},
	"a role in two teams": {
		"subject": {"team_ids": ["alpha", "beta"], "roles": ["viewer"]},
		"team_roles": {"alpha": viewer, "beta": viewer}, "common": viewer, "platform": set(),
	},
	"an identity's own admin is the platform's": {
		"subject": {"team_ids": ["alpha"], "roles": ["admin"]},
		"team_roles": {"alpha": admin}, "common": admin, "platform": admin,
	},
	"roles in any case": {
		"subject": {"roles": ["OP", "Viewer"]},
		"team_roles": {}, "common": op, "platform": set(),
	},
	"an unknown role is worth nothing": {
		"subject": {"team_ids": ["alpha"], "roles": ["king"]},
		"team_roles": {"alpha": set()}, "common": set(), "platform": set(),
	},
	"a group with a role": {
		"subject": {"groups": ["alpha-ops"]},
		"team_roles": {"alpha": op}, "common": op, "platform": set(),
	},
	"a group without a role makes a member whose own roles count": {
		"subject": {"groups": ["alpha-people"], "roles": ["user"]},
		"team_roles": {"alpha": user}, "common": user, "platform": set(),
	},
	"a group with a role does not lend its team to other roles": {
		"subject": {"groups": ["both"], "roles": ["op"]},
		"team_roles": {"alpha": viewer, "beta": admin}, "common": op, "platform": set(),
	},
	"a team's admin is an op for what is common": {
		"subject": {"groups": ["both"]},
		"team_roles": {"alpha": viewer, "beta": admin}, "common": op, "platform": set(),
	},
	"a platform group counts in every team": {
		"subject": {"team_ids": ["alpha"], "groups": ["platform"]},
		"team_roles": {"alpha": op}, "common": op, "platform": op,
	},
	"a login role that the directory names": {
		"subject": {"roles": ["Beta Users"]},
		"team_roles": {"beta": user}, "common": user, "platform": set(),
	},
	"a group that nobody knows": {
		"subject": {"groups": ["strangers"]},
		"team_roles": {}, "common": set(), "platform": set(),
	},
}

test_standing[note] if {
	some note, case in cases
	stands := found(case.subject)
	stands == {"team_roles": case.team_roles, "common": case.common, "platform": case.platform}
}

test_number_of_cases if count(cases) == 15

found(subject) := stands if {
	stands := {
		"team_roles": standing.team_roles,
		"common": standing.common_roles,
		"platform": standing.platform_roles,
	} with input as {"subject": subject} with data.airflow.directory as directory
}

test_team_ids_come_from_identity_and_directory if {
	standing.team_ids == {"alpha", "beta", "gamma"} with input as {"subject": {"team_ids": ["gamma"], "groups": ["both"]}}
		with data.airflow.directory as directory
}

test_nobody_is_in_a_directory_that_is_not_there if {
	standing.team_ids == set() with input as {"subject": {"groups": ["alpha-ops"]}}
		with data.airflow.directory as {}
}
