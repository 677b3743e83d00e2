"""Users of the AWS auth manager: IAM Identity Center's groups, which Airflow's own token carries."""

from __future__ import annotations

from airflow_team_authz.identities import Identity


class AmazonIdentity(Identity):
    """Groups as they are; Amazon Verified Permissions is not asked, so a site need not have it."""

    def _check_avp_schema_version(self) -> None:
        """At start the login manager would look for its policy store."""
