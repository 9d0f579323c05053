package found

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// manifestDir is where kubeadm puts the static pods.
const manifestDir = "/etc/kubernetes/manifests"

// manifests reads the static pods of the machine.
func (m *Machine) manifests(root string) (all []Program) {
	dir := filepath.Join(root, manifestDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			m.refuse(err, "run this as root")
		}
		return nil
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext != ".yaml" && ext != ".yml" && ext != ".json" || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		from := filepath.Join(manifestDir, e.Name())
		data, err := readFile(filepath.Join(dir, e.Name()))
		if err != nil {
			m.refuse(err, "run this as root")
			continue
		}
		p, err := parseManifest(data)
		switch {
		case err != nil:
			m.refuse(fmt.Errorf("%s: %w", from, err), "correct the file")
		case p.Name == "":
			m.note("%s: none of the four programs, left alone", from)
		default:
			p.From = from
			all = append(all, p)
		}
	}
	return all
}

type pod struct {
	Kind string `yaml:"kind"`
	Spec struct {
		Containers []struct {
			Command []string `yaml:"command"`
			Args    []string `yaml:"args"`
			Image   string   `yaml:"image"`
			Env     []struct {
				Name      string `yaml:"name"`
				Value     string `yaml:"value"`
				ValueFrom any    `yaml:"valueFrom"`
			} `yaml:"env"`
			VolumeMounts []struct {
				Name      string `yaml:"name"`
				MountPath string `yaml:"mountPath"`
				SubPath   string `yaml:"subPath"`
			} `yaml:"volumeMounts"`
		} `yaml:"containers"`
		Volumes []struct {
			Name     string `yaml:"name"`
			HostPath struct {
				Path string `yaml:"path"`
			} `yaml:"hostPath"`
		} `yaml:"volumes"`
	} `yaml:"spec"`
}

// parseManifest reads a static pod. The name is "" if it runs none of the programs.
func parseManifest(data []byte) (p Program, err error) {
	var d pod
	if err := yaml.Unmarshal(data, &d); err != nil {
		return p, errors.New("not the expected YAML")
	}
	if d.Kind != "Pod" {
		return p, nil
	}
	host := map[string]string{}
	for _, v := range d.Spec.Volumes {
		host[v.Name] = v.HostPath.Path
	}
	for _, c := range d.Spec.Containers {
		words := slices.Concat(c.Command, c.Args)
		if len(words) == 0 {
			continue
		}
		name, args := called(words)
		if name == "" {
			if slices.ContainsFunc(words, func(w string) bool { return strings.Contains(w, "kube-apiserver ") || strings.Contains(w, "etcd --") }) {
				return p, fmt.Errorf("runs a program by %s, so its flags cannot be read", words[0])
			}
			continue
		}
		if p.Name != "" {
			return p, fmt.Errorf("runs %s and %s in one pod", p.Name, name)
		}
		p = Program{Name: name, Exe: words[0], Kind: FromManifests, Version: imageVersion(c.Image), Mounts: map[string]string{}}
		v := variables{known: map[string]string{}, foreign: map[string]bool{}}
		for _, e := range c.Env {
			if v.foreign[e.Name] = e.ValueFrom != nil; e.ValueFrom == nil {
				value, _ := v.expand(e.Value) // the words that need it tell the error
				v.known[e.Name] = value
				p.Env = append(p.Env, e.Name+"="+value)
			}
		}
		for _, a := range args {
			if a, err = v.expand(a); err != nil {
				return p, err
			}
			p.Args = append(p.Args, a)
		}
		for _, v := range c.VolumeMounts {
			if path := host[v.Name]; path != "" && v.MountPath != "" {
				p.Mounts[v.MountPath] = filepath.Join(path, v.SubPath)
			}
		}
	}
	return p, nil
}

// variables are those of a container.
type variables struct {
	known   map[string]string
	foreign map[string]bool // whose values the kubelet knows
}

// expand replaces $(NAME) in a word, and $$ by one $, as the kubelet does. What is no variable stays.
func (v variables) expand(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		rest := s[i:]
		end := strings.IndexByte(rest, ')')
		switch {
		case strings.HasPrefix(rest, "$$"):
			b.WriteByte('$')
			i++
		case strings.HasPrefix(rest, "$(") && end > 0:
			name := rest[2:end]
			value, known := v.known[name]
			if v.foreign[name] {
				return "", fmt.Errorf("takes $(%s) from the kubelet, which alone knows its value: write it in its place", name)
			}
			if !known {
				value = rest[:end+1]
			}
			b.WriteString(value)
			i += end
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), nil
}

// imageVersion returns the version in the tag of an image: etcd's 3.6.4-0 is 3.6.4.
func imageVersion(image string) string {
	image, _, _ = strings.Cut(image, "@")
	at := strings.LastIndexByte(image, ':')
	if at < 0 || strings.Contains(image[at:], "/") {
		return ""
	}
	version, _, _ := strings.Cut(image[at+1:], "-")
	return version
}
