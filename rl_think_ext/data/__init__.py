"""From plain text to rows of contexts and targets, and from rows to token ids."""
