"""Methods compared over seeds: paired differences, one correction for a whole table, ranks, and the words for them."""
