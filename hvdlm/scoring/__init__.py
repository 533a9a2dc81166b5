"""What predictions are worth: integers that add up over records and ranks, and figures with intervals made of them."""
