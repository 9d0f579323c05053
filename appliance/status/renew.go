package status

import (
	"fmt"
	"path/filepath"
	"strings"

	"kthwd/appliance/pki"
	"kthwd/appliance/text"
)

// made are the files that kthwd makes and that can be made anew one by one, by the name of the
// file that a finding is about: those to move away, and what follows.
var made = map[string]struct {
	files []string
	then  string // a command that is needed after it
	note  string
}{
	// Upstream's API server, controllers and etcd read these files again: at each handshake, at a
	// change or within 5 minutes (client-go's CertCallbackRefreshDuration).
	pki.NameKubernetes + ".pem":       {files: pair(pki.NameKubernetes), note: readAgain},
	pki.NameFrontProxyClient + ".pem": {files: pair(pki.NameFrontProxyClient), note: readAgain},
	pki.NameHealth + ".pem":           {files: pair(pki.NameHealth), note: readAgain},
	pki.NameEtcd + ".pem":             {files: pair(pki.NameEtcd), note: readAgain},
	// A kubeconfig holds a copy of its certificate, which upstream reads once.
	pki.NameControllerManager + ".kubeconfig": {files: configOf(pki.NameControllerManager), then: restart},
	pki.NameScheduler + ".kubeconfig":         {files: configOf(pki.NameScheduler), then: restart},
	pki.NameAdmin + ".kubeconfig":             {files: configOf(pki.NameAdmin), note: "no restart is needed; replace the copies that people have"},
}

const (
	readAgain = "no restart is needed"
	restart   = "systemctl restart kthwd-controller"
)

func pair(name string) []string { return []string{name + ".pem", name + "-key.pem"} }

func configOf(name string) []string { return append(pair(name), name+".kubeconfig") }

// renew says how a certificate is made anew: for a file that kthwd has made, as a command for
// the shell. It changes nothing where the CA's key or one of the files is missing; the
// new file is made with the running configuration and keeps the names of the old one, and
// the old one comes back if that fails.
func renew(c Certificate) string {
	dir, name := filepath.Split(c.File)
	m, ok := made[name]
	switch {
	case !filepath.IsAbs(c.File):
		return restart // it is in memory, and made at each start
	case c.Use == "ca":
		return "issue a new CA in time, and every certificate that this one has signed"
	case !ok:
		return "reissue it, and restart the programs that use it"
	}
	signer := "ca-key.pem"
	switch name {
	case pki.NameFrontProxyClient + ".pem":
		signer = pki.NameFrontProxyCA + "-key.pem"
	case pki.NameEtcd + ".pem":
		signer = pki.NameEtcdCA + "-key.pem"
	}
	dir, files := text.ShellWord(filepath.Clean(dir)), strings.Join(m.files, " ")
	do := fmt.Sprintf("cd %s && ls %s %s && mkdir -p -m 700 old && kthwd config --running --data-dir=%s >old/kthwd.yaml && mv -t old %s && { kthwd pki init --config=old/kthwd.yaml || mv -t . %s; }",
		dir, signer, files, dir, files, "old/"+strings.Join(m.files, " old/"))
	if m.then != "" {
		do += " && " + m.then
	}
	if m.note != "" {
		do += " # " + m.note
	}
	return do
}
