"""What stops trials early, or lets one go on from another: policies without Ray, and what Tune sees."""
