"""What kinds of bulk job do. `base` is the seam that plug-ins implement."""
