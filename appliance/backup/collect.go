package backup

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"kthwd/appliance/archive"
	"kthwd/appliance/pki"
)

// files are the files for an archive, by name, in the order in which they go in.
type files struct {
	list    []archive.File
	content map[string][]byte
	leftOut []string // names of files with secrets, which stay out
}

// collect reads the files of a data directory that a controller needs: certificates, keys,
// kubeconfigs and configuration. Without secrets it leaves out those with a private key or
// the key of the encryption.
func collect(l pki.Layout, secrets bool) (*files, error) {
	entries, err := os.ReadDir(l.Dir)
	if err != nil {
		return nil, err
	}
	f := &files{content: map[string][]byte{}}
	var problems []error
	for _, name := range namesOf(l, entries) {
		if err := f.addFile(l, name, secrets); err != nil {
			problems = append(problems, err)
		}
	}
	return f, errors.Join(problems...)
}

// namesOf are the files of a controller by their names in its data directory: those that are
// there, and those that the configuration has elsewhere.
func namesOf(l pki.Layout, entries []os.DirEntry) (names []string) {
	for _, e := range entries {
		if _, elsewhere := l.Elsewhere[e.Name()]; !elsewhere && archive.Wanted(l, e.Name()) {
			names = append(names, e.Name())
		}
	}
	names = append(names, slices.Collect(maps.Keys(l.Elsewhere))...)
	slices.Sort(names)
	return names
}

func (f *files) addFile(l pki.Layout, name string, secrets bool) error {
	path := l.Path(name)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && (!info.Mode().IsRegular() || info.Size() > archive.MaxFile) {
		return nil
	}
	if err != nil {
		return err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	secret := isSecret(l, path, data)
	if secret && !secrets {
		f.leftOut = append(f.leftOut, name)
		return nil
	}
	f.add(archive.FilesDir+name, data, info.Mode(), secret)
	return nil
}

func (f *files) add(name string, data []byte, mode fs.FileMode, secret bool) {
	f.list = append(f.list, archive.NewFile(name, data, mode, secret))
	f.content[name] = data
}

// isSecret reports whether a file holds what opens the cluster or its objects.
func isSecret(l pki.Layout, path string, data []byte) bool {
	if path == l.EncryptionConfig() || pki.HoldsPrivateKey(data) {
		return true
	}
	for _, word := range []string{"client-key-data:", "token:", "password:", "EncryptionConfiguration"} {
		if bytes.Contains(data, []byte(word)) {
			return true
		}
	}
	return false
}

// services names the key management services in an encryption configuration.
func services(data []byte) (names []string) {
	var c struct {
		Resources []struct {
			Providers []struct {
				KMS *struct {
					Name string `yaml:"name"`
				} `yaml:"kms"`
			} `yaml:"providers"`
		} `yaml:"resources"`
	}
	if yaml.Unmarshal(data, &c) != nil {
		return nil
	}
	for _, r := range c.Resources {
		for _, p := range r.Providers {
			if p.KMS != nil && !slices.Contains(names, p.KMS.Name) {
				names = append(names, p.KMS.Name)
			}
		}
	}
	return names
}

// outside lists the files that the programs' command lines name and that are not in the data
// directory. Files of the machine that every program can read, such as a CA bundle, are
// among them: nobody else knows which of them the operator has made.
func outside(l pki.Layout, args map[string][]string) (paths []string) {
	for _, line := range args {
		for _, arg := range line {
			_, value, _ := strings.Cut(arg, "=")
			if !filepath.IsAbs(value) || slices.Contains(slices.Collect(maps.Values(l.Elsewhere)), value) || slices.Contains(paths, value) || below(l.Dir, value) || below(l.Etcd(), value) {
				continue
			}
			if info, err := os.Stat(value); err == nil && info.Mode().IsRegular() {
				paths = append(paths, value)
			}
		}
	}
	slices.Sort(paths)
	return paths
}

func below(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}
