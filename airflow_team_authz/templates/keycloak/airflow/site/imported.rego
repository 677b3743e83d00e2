# Written by `team-authz import keycloak`: applies the rules in imported/ to everyone.
package airflow.site

import data.airflow.site.imported

allow contains reason if some reason in imported.allow
