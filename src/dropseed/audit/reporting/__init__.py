"""What is made of findings: selection, formats, fixes."""
