package pki

import (
	"bytes"
	"crypto/x509"
	"path/filepath"
)

// Used returns the certificates of one file that are in use: the first of a
// certificate file, all of a file of CAs, and the client's and the CAs of a
// kubeconfig. Of several CAs with one subject, as during a replacement, it returns the
// one that expires last. A file without certificates, such as a kubeconfig with a
// token, has no entry; one that cannot be read is an Entry with a Problem.
func Used(path string) []Entry {
	data, _, err := read(path)
	if err != nil {
		return []Entry{{File: path, Problem: problem(path, err)}}
	}
	if !bytes.Contains(data, []byte("-----BEGIN")) {
		return usedByKubeconfig(path, data)
	}
	chain, _, err := parseCertificates(data)
	if err != nil {
		return []Entry{{File: path, Problem: problem(path, err)}}
	}
	return usedOf(path, chain)
}

func usedOf(path string, chain []*x509.Certificate) (all []Entry) {
	newest := map[string]int{}
	for i, c := range chain {
		if !c.IsCA {
			if i == 0 {
				return []Entry{describe(path, c)}
			}
			continue
		}
		e := describe(path, c)
		if at, seen := newest[e.Subject]; !seen {
			newest[e.Subject] = len(all)
			all = append(all, e)
		} else if all[at].NotAfter.Before(e.NotAfter) {
			all[at] = e
		}
	}
	return all
}

// usedByKubeconfig skips fields that it cannot read, because the program that uses the
// file reports them.
func usedByKubeconfig(path string, data []byte) (all []Entry) {
	var f kubeconfigFile
	if err := decodeYAML(data, &f); err != nil {
		return []Entry{{File: path, Problem: problem(path, err)}}
	}
	cluster, user, err := f.current()
	if err != nil {
		return []Entry{{File: path, Problem: problem(path, err)}}
	}
	dir := filepath.Dir(path)
	for _, part := range []struct{ data, file string }{
		{user.User.CertData, user.User.CertFile}, {cluster.Cluster.CAData, cluster.Cluster.CAFile},
	} {
		if part.data == "" && part.file == "" {
			continue
		}
		pem, err := content(part.data, part.file, dir)
		if err != nil {
			continue
		}
		if chain, _, err := parseCertificates(pem); err == nil {
			all = append(all, usedOf(path, chain)...)
		}
	}
	return all
}
