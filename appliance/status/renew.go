package status

import (
	"path/filepath"
	"strings"

	"kthwd/appliance/pki"
	"kthwd/appliance/text"
)

const restart = "systemctl restart kthwd-controller"

// renew says how a certificate is made anew: for a file that kthwd has made, as a command for
// the shell, which names the obstacle where the key of its CA is elsewhere. No restart is
// needed: every program reads these files again.
func renew(c Certificate) string {
	dir, file := filepath.Split(c.File)
	name := strings.TrimSuffix(strings.TrimSuffix(file, ".pem"), ".kubeconfig")
	switch {
	case !filepath.IsAbs(c.File):
		return restart // it is in memory, and made at each start
	case c.Use == "ca":
		return "issue a new CA in time, and every certificate that this one has signed"
	case !pki.Renewable(file):
		return "reissue it, and restart the programs that use it"
	}
	do := "kthwd pki renew " + name + " --data-dir=" + text.ShellWord(filepath.Clean(dir))
	if name == pki.NameAdmin {
		do += " # and replace the copies that people have"
	}
	return do
}
