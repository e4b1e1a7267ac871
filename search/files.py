"""Names of the files that a study's folder and its MLflow run have in common; an export's is multimodal's."""

TUNED = "tuned.json"  # a search's best config, before it is exported
SNAPSHOT = "study.json"  # the study as plain data, from which it can be rebuilt
