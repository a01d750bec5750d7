"""Files of a run between the controller and hosts with disks of their own."""
