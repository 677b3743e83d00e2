"""Policy on its way from a team's editor to the engines: gate, artifact, aggregate, push.

What travels is a set of files: their paths from the root of the policy directory, with slashes, and their content.
Knows neither doors nor Airflow.
"""


class BundlesError(Exception):
    """Bundles cannot be built or published."""
