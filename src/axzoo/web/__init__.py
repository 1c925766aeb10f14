"""What axzoo's HTTP servers share."""
