# METADATA
# title: What team beta decides about its own resources
# description: Nothing yet, the baseline is enough for beta.
# scope: package
package teams.beta
