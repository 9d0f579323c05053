@COMMON@
# In an upgrade the new package has set up the units already, and a unit that failed must stay failed:
# the next upgrade leaves a unit alone that does not run and has not failed.
[ "$1" -gt 0 ] || removed
