package archive

import (
	"path/filepath"
	"slices"

	"kthwd/appliance/pki"
)

// Wanted reports whether a file of the data directory goes into an archive.
func Wanted(l pki.Layout, name string) bool {
	if !IsFileName(name) || name == ConfigFile { // the settings in force take its place
		return false
	}
	path := filepath.Join(l.Dir, name)
	if path == l.Record() || path == l.Names() {
		return true
	}
	return slices.Contains([]string{".pem", ".kubeconfig", ".yaml"}, filepath.Ext(name))
}

// MissingKeys are the keys of CAs whose certificate is in an archive, and which are not in it
// themselves: without copies of them a restored cluster gives no further controller and no node a
// certificate.
func MissingKeys(m Manifest) (names []string) {
	for _, path := range [][2]string{{pki.Layout{}.CA(), pki.Layout{}.CAKey()}, {pki.Layout{}.EtcdCA(), pki.Layout{}.EtcdCAKey()}} {
		if m.Find(FilesDir+path[0]) != nil && m.Find(FilesDir+path[1]) == nil {
			names = append(names, path[1])
		}
	}
	return names
}
