"""Reading source: text, names, conditions and the flow of values. No rule is here."""
