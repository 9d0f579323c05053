@DOWNGRADE@
refuse_downgrade
