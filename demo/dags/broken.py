"""In team alpha's bundle: a file that cannot be imported, and whose error tells of alpha's."""

from pathlib import Path

if Path(__file__).parent.name == "alpha-dags":
    raise ConnectionError("warehouse.alpha.example does not answer")
