"""Two worlds that differ only in what team alpha has and does: whoever has no business there cannot tell them apart."""
