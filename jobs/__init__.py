"""Jobs on a cluster: sites and templates become scripts, scripts are checked, submitted, watched and requeued."""
