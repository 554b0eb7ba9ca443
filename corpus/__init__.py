"""Other people's packages, on which the auditor's precision and recall are measured."""
