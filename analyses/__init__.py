"""The paper's questions, one page-long module each: `python -m analyses.NAME RESULTS...`, from a checkout."""
