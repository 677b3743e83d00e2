# METADATA
# title: The decision
# description: |
#   Composes guardrails, the owning team's package and the baseline. The order is the whole of the
#   security argument: what the platform denies nobody overrides, and a team's package is asked only
#   about what the team owns, because it is reached by the resource's `team_id` and by nothing else.
# scope: package
package airflow.authz

import data.airflow.authz.baseline
import data.airflow.authz.guardrails
import data.airflow.authz.standing

# METADATA
# title: One question
# description: |
#   Always defined: `{"allow": bool, "reasons": [string], "layer": string}`, and `team_version`, a number, if the bundle
#   says which version of the owning team's package is in it.
# entrypoint: true
# scope: document
# schemas:
#   - input: schema.input
default decision := {"allow": false, "reasons": ["the question lacks a part"], "layer": "default"}

decision := _answer(input.resource, speaking)

# METADATA
# title: Many questions that share subject, action and context
# description: |
#   `input.resources` in place of `input.resource`. The answer is a list in the same order, each
#   element what `decision` says of that resource alone.
# entrypoint: true
# schemas:
#   - input: schema.evaluations
decisions := [_answer(input.resources[i], steps) | some i, steps in _spoken(input.resources)]

# METADATA
# title: Which of many are allowed
# description: The indices of `input.resources` that `decisions` allows; for lists, which need no reasons.
# entrypoint: true
# schemas:
#   - input: schema.evaluations
allowed := [i | some i, kind in _kinds; _is_granted(i, kind)]

# In the order of the list, because sorting a thousand indices takes longer than finding them.
_is_granted(_, kind) if _granted_kinds[kind]

_is_granted(i, _) if _granted_alone[i]

_answer(resource, steps) := object.union(said, _team_version(resource)) if {
	step := _decisive(resource, steps)
	said := object.union(_outcomes[step], {"reasons": _reasons(step, resource)})
}

# Which version of the owning team's package was asked, where the bundle says it: an aggregate of many does.
_team_version(resource) := {"team_version": version} if {
	version := data.airflow.revisions.teams[resource.team_id]
} else := {}

# The first that has something to say decides.
_decisive(resource, steps) := "platform_denies" if {
	"platform_denies" in steps
} else := "team_denies" if {
	"team_denies" in steps
} else := "baseline_allows" if {
	baseline.allows(resource)
} else := "platform_allows" if {
	"platform_allows" in steps
} else := "team_allows" if {
	"team_allows" in steps
} else := "nothing_allows"

_outcomes := {
	"platform_denies": {"allow": false, "layer": "guardrail"},
	"team_denies": {"allow": false, "layer": "team"},
	"baseline_allows": {"allow": true, "layer": "baseline"},
	"platform_allows": {"allow": true, "layer": "baseline"},
	"team_allows": {"allow": true, "layer": "team"},
	"nothing_allows": {"allow": false, "layer": "default"},
}

# Which of the rules that people write have something to say of `input.resource`.
speaking contains "platform_denies" if some _ in guardrails.deny

speaking contains "platform_denies" if some _ in data.airflow.site.deny

speaking contains "team_denies" if some _ in data.teams[input.resource.team_id].deny

speaking contains "platform_allows" if some _ in data.airflow.site.allow

speaking contains "team_allows" if some _ in data.teams[input.resource.team_id].allow

# `speaking` of each of many resources, in their order.
_spoken(resources) := steps if {
	known := standing.of_long_list

	# regal ignore:with-outside-test-context
	steps := _each_spoken(resources) with data.airflow.authz.known as known
} else := _each_spoken(resources)

# A function of its own, because the rest of a body loses what was computed before a `with` in it. `shared` is local,
# because a rule of that name would be computed again under each `with`.
_each_spoken(resources) := steps if {
	shared := object.remove(input, {"resource", "resources"})
	steps := [said |
		some resource in resources

		# regal ignore:with-outside-test-context,comprehension-term-assignment
		said := speaking with input as object.union(shared, {"resource": resource})
	]
}

# What the resources are apart from their ids.
_kinds := [object.remove(resource, {"id"}) | some resource in input.resources]

# The same without repetitions, and their owners. Values, because an OPA server would compute rules of their elements
# again for each that is asked for.
# regal ignore:prefer-set-or-object-rule
_distinct := {kind | some kind in _kinds}

# regal ignore:prefer-set-or-object-rule
_owners := {kind.team_id | some kind in _distinct}

# Owners for whose resources no rule looks at ids, which a bundle says of the rules in it. A list asks once about each
# kind of these, and not once about each resource.
default _alike := set()

_alike := {team_id | some team_id in _owners; _alike_in(team_id)} if data.airflow.regardless_of_id.site == true

_not_alike := _owners - _alike

_alike_in(null) := true

_alike_in(team_id) if {
	known := data.airflow.regardless_of_id
	object.get(known.teams, team_id, known.others) == true
}

_alike_kinds := [kind | some kind in _distinct; _alike[kind.team_id]]

# regal ignore:prefer-set-or-object-rule
_granted_kinds := {kind |
	some i, steps in _spoken(_alike_kinds)
	kind := _alike_kinds[i]
	_opens(kind, steps)
}

# The indices of the resources that are asked about one by one.
default _alone := []

_alone := [i | some i, resource in input.resources; _not_alike[resource.team_id]] if count(_not_alike) > 0

# regal ignore:prefer-set-or-object-rule
_granted_alone := {i |
	resources := [resource | some i in _alone; resource := input.resources[i]]
	some n, steps in _spoken(resources)
	i := _alone[n]
	_opens_alone(_kinds[i], steps)
}

_opens_alone(kind, steps) if {
	count(steps) == 0
	_open_kinds[kind]
}

_opens_alone(kind, steps) if {
	count(steps) > 0
	_opens(kind, steps)
}

_opens(resource, steps) if {
	count(steps) == 0
	baseline.allows(resource)
}

_opens(resource, steps) if {
	count(steps) > 0
	_outcomes[_decisive(resource, steps)].allow
}

# The role table looks at a resource's kind, not at its id, and a list holds few kinds. A value and not a rule of its
# elements, which an OPA server would compute again for each kind that is asked for; and looked up by `[kind]`, because
# `in` compares with each of them in Wasm.
# regal ignore:prefer-set-or-object-rule
_open_kinds := {kind |
	some kind in _distinct
	baseline.allows(kind)
}

_reasons(step, resource) := baseline.reasons(resource) if {
	step == "baseline_allows"
} else := [baseline.refusal(resource)] if {
	step == "nothing_allows"
} else := said if {
	question := object.union(object.remove(input, {"resource", "resources"}), {"resource": resource})

	# regal ignore:with-outside-test-context
	said := _because[step] with input as question
}

_because["platform_denies"] := _texts({r | some r in guardrails.deny} | {r | some r in data.airflow.site.deny})

_because["team_denies"] := _texts({reason | some reason in data.teams[input.resource.team_id].deny})

_because["platform_allows"] := _texts({reason | some reason in data.airflow.site.allow})

_because["team_allows"] := _texts({reason | some reason in data.teams[input.resource.team_id].allow})

# Sorted, because sets have no order of their own and the two engines must say the same; as text,
# because a rule may have put anything into its set, and one such rule must not spoil a list.
_texts(_reasons) := sort({$"{reason}" | some reason in _reasons})
