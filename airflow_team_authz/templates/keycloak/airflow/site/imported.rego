# Written by `team-authz import keycloak`: lets what is in imported/ count for everyone.
package airflow.site

import data.airflow.site.imported

allow contains reason if some reason in imported.allow
