package upgradecheck

import (
	"cmp"
	"strings"

	"kthwd/appliance/text"
)

func judgeBinary(in Input) Result {
	b := in.Binary
	if in.BinaryErr != nil {
		return of(No, in.BinaryErr, "")
	}
	return ok("kthwd %s with Kubernetes %s and etcd %s: %s", b.Kthwd, b.Kubernetes, b.Etcd, b.Path)
}

func judgeConfiguration(in Input) Result {
	const look = "kthwd config, of the new binary, with the flags of the service"
	c := in.Configuration
	switch {
	case in.BinaryErr != nil:
		return noBinary("the configuration is")
	case in.ConfigurationErr != nil:
		return unknown(look, "the configuration is not judged: %s", why(in.ConfigurationErr))
	case len(c.Problems) > 0:
		return no(cmp.Or(text.Line(strings.Join(c.Hints, "; ")), look), "the new binary refuses it: %s", list(c.Problems))
	case len(c.Warnings) > 0:
		return warn(look, "the new binary accepts it and warns: %s", list(c.Warnings))
	}
	return ok("the new binary accepts the flags and the file")
}
