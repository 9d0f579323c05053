package pki

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"
)

// kubeconfigFile is the part of a kubeconfig that kthwd reads and writes. The names
// are upstream's: staging/src/k8s.io/client-go/tools/clientcmd/api/v1/types.go.
type kubeconfigFile struct {
	APIVersion string         `yaml:"apiVersion"`
	Kind       string         `yaml:"kind"`
	Clusters   []namedCluster `yaml:"clusters"`
	Users      []namedUser    `yaml:"users"`
	Contexts   []namedContext `yaml:"contexts"`
	Current    string         `yaml:"current-context"`
}

type namedCluster struct {
	Name    string `yaml:"name"`
	Cluster struct {
		Server string `yaml:"server"`
		Name   string `yaml:"tls-server-name,omitempty"`
		CAFile string `yaml:"certificate-authority,omitempty"`
		CAData string `yaml:"certificate-authority-data,omitempty"`
	} `yaml:"cluster"`
}

type namedUser struct {
	Name string `yaml:"name"`
	User struct {
		CertFile string `yaml:"client-certificate,omitempty"`
		CertData string `yaml:"client-certificate-data,omitempty"`
		KeyFile  string `yaml:"client-key,omitempty"`
		KeyData  string `yaml:"client-key-data,omitempty"`
	} `yaml:"user"`
}

type namedContext struct {
	Name    string `yaml:"name"`
	Context struct {
		Cluster string `yaml:"cluster"`
		User    string `yaml:"user"`
	} `yaml:"context"`
}

// access is the content of a kubeconfig's current context.
type access struct {
	server string
	name   string // tls-server-name
	cas    []*x509.Certificate
	client pair
}

// renderKubeconfig returns the file that the tutorial's four kubectl config commands
// write.
func renderKubeconfig(s Spec, server string, ca, client pair) ([]byte, error) {
	key, err := encodeKey(client.key)
	if err != nil {
		return nil, err
	}
	cluster, user, context := namedCluster{Name: s.clusterName()}, namedUser{}, namedContext{Name: "default"}
	cluster.Cluster.Server = server
	cluster.Cluster.CAData = base64.StdEncoding.EncodeToString(encodeCertificates(ca.chain))
	user.Name = client.chain[0].Subject.CommonName
	user.User.CertData = base64.StdEncoding.EncodeToString(encodeCertificates(client.chain))
	user.User.KeyData = base64.StdEncoding.EncodeToString(key)
	context.Context.Cluster, context.Context.User = cluster.Name, user.Name
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	err = enc.Encode(kubeconfigFile{
		APIVersion: "v1", Kind: "Config",
		Clusters: []namedCluster{cluster},
		Users:    []namedUser{user},
		Contexts: []namedContext{context},
		Current:  context.Name,
	})
	return out.Bytes(), err
}

// parseKubeconfig reads a kubeconfig's current context. Like client-go, it reads files
// that the kubeconfig names relative to dir. Its errors follow the file's name in a
// sentence. They quote nothing of the kubeconfig but the paths of these files.
func parseKubeconfig(data []byte, dir string) (access, error) {
	var f kubeconfigFile
	if err := decodeYAML(data, &f); err != nil {
		return access{}, err
	}
	cluster, user, err := f.current()
	if err != nil {
		return access{}, err
	}
	a := access{server: cluster.Cluster.Server, name: cluster.Cluster.Name}
	a.client.hasCert, a.client.hasKey = true, true
	for _, part := range []struct {
		field, data, file string
		parse             func([]byte) error
	}{
		{"certificate-authority", cluster.Cluster.CAData, cluster.Cluster.CAFile, func(pem []byte) (err error) {
			a.cas, _, err = parseCertificates(pem)
			return err
		}},
		{"client-certificate", user.User.CertData, user.User.CertFile, func(pem []byte) (err error) {
			a.client.chain, a.client.public, err = parseCertificates(pem)
			return err
		}},
		{"client-key", user.User.KeyData, user.User.KeyFile, func(pem []byte) (err error) {
			a.client.key, err = parseKey(pem)
			return err
		}},
	} {
		pem, err := content(part.data, part.file, dir)
		if err == nil {
			err = checkPEM(pem)
		}
		if err == nil {
			err = part.parse(pem)
		}
		if err != nil {
			return access{}, fmt.Errorf("%s: %w", part.field, err)
		}
	}
	if len(a.cas) == 0 || len(a.client.chain) == 0 {
		return access{}, errors.New("holds a public key in place of a certificate")
	}
	return a, nil
}

// current returns the cluster and the user of the current context.
func (f kubeconfigFile) current() (cluster namedCluster, user namedUser, err error) {
	if f.Kind != "Config" {
		return cluster, user, errors.New("its kind is not Config")
	}
	i := slices.IndexFunc(f.Contexts, func(c namedContext) bool { return c.Name == f.Current })
	if i < 0 {
		return cluster, user, errors.New("its current-context is not in it")
	}
	context := f.Contexts[i].Context
	i = slices.IndexFunc(f.Clusters, func(c namedCluster) bool { return c.Name == context.Cluster })
	if i < 0 {
		return cluster, user, errors.New("the cluster of its current-context is not in it")
	}
	j := slices.IndexFunc(f.Users, func(u namedUser) bool { return u.Name == context.User })
	if j < 0 {
		return cluster, user, errors.New("the user of its current-context is not in it")
	}
	return f.Clusters[i], f.Users[j], nil
}

// content returns the PEM of one field, embedded or in a file.
func content(embedded, file, dir string) ([]byte, error) {
	if embedded != "" {
		pem, err := base64.StdEncoding.DecodeString(embedded)
		if err != nil {
			return nil, errors.New("its data is not base64")
		}
		return pem, nil
	}
	if file == "" {
		return nil, errors.New("is missing")
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(dir, file)
	}
	pem, info, err := read(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if err == nil && HoldsPrivateKey(pem) && info.Mode().Perm()&forNobodyElse != 0 {
		return nil, &Misfit{File: file, Problem: fmt.Sprintf("readable or writable by group or others (mode %04o)", info.Mode().Perm()), Hint: "chmod 600 " + file}
	}
	return pem, err
}

// localName returns the name by which a client with this kubeconfig verifies an API server
// of its own machine, or "" if it asks another one.
func (a *access) localName() string {
	u, err := url.Parse(a.server)
	if err != nil || !isLoopback(u.Hostname()) {
		return ""
	}
	return cmp.Or(a.name, u.Hostname())
}

// strayed returns what is wrong with a kubeconfig's server. A loopback server must be
// this machine's API server; any other, such as a load balancer, is accepted.
func strayed(server, own string) (problem string) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return "its server is not an https URL"
	}
	o, err := url.Parse(own)
	if err != nil || !isLoopback(u.Hostname()) || port(u) == port(o) {
		return ""
	}
	return fmt.Sprintf("its server is https://%s, but the API server of this kthwd is at %s", u.Host, own)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	return "443"
}
