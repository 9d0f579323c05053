@COMMON@
removed
