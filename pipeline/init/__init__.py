"""From a file of texts to a project that ``dvc repro`` runs."""
