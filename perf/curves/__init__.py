"""Looking into training runs: what their folders tell, thinned and drawn, as a page and live in a terminal."""
