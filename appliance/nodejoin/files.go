package nodejoin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"kthwd/appliance/advice"
	"kthwd/appliance/durable"
)

// Files say where the files of a worker are, and what its kubelet is told of the machine.
type Files struct {
	KubeletDir   string // of the kubelet: its configuration, kubeconfigs and certificates
	CA           string // the file for the cluster's CAs
	Unit         string // the kubelet's systemd unit; empty for none
	Kubelet      string // its program
	Runtime      string // the socket of the container runtime, as unix:///PATH
	CgroupDriver string // systemd or cgroupfs
	NodeIP       string // the node's address; empty for the kubelet's choice
}

// DefaultFiles are the guide's.
func DefaultFiles() Files {
	return Files{
		KubeletDir: "/var/lib/kubelet", CA: "/var/lib/kubernetes/ca.pem", Unit: "/etc/systemd/system/kubelet.service",
		Kubelet: "/usr/local/bin/kubelet", Runtime: "unix:///run/containerd/containerd.sock", CgroupDriver: "systemd",
	}
}

// plainPath is a path that needs no quotes in a unit and in YAML.
var plainPath = regexp.MustCompile(`^/[A-Za-z0-9_./@+:-]+$`)

func (f Files) check() error {
	var errs []error
	for _, p := range []struct{ flag, path string }{
		{"--kubelet-dir", f.KubeletDir}, {"--ca-file", f.CA}, {"--unit", f.Unit}, {"--kubelet", f.Kubelet},
		{"--container-runtime-endpoint", strings.TrimPrefix(f.Runtime, "unix://")},
	} {
		if !plainPath.MatchString(p.path) && (p.path != "" || p.flag != "--unit") {
			errs = append(errs, fmt.Errorf("%s %q: want an absolute path of letters, digits and _./@+:-", p.flag, p.path))
		}
	}
	if f.CgroupDriver != "systemd" && f.CgroupDriver != "cgroupfs" {
		errs = append(errs, fmt.Errorf("--cgroup-driver %q: want systemd or cgroupfs, as the container runtime has it", f.CgroupDriver))
	}
	if f.NodeIP != "" {
		if ip, err := netip.ParseAddr(f.NodeIP); err != nil || ip.IsLoopback() || ip.IsUnspecified() {
			errs = append(errs, fmt.Errorf("--node-ip %q: want an address by which others reach this machine", f.NodeIP))
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return advice.Usage(errors.Join(errs...))
}

func (f Files) config() string     { return filepath.Join(f.KubeletDir, "kubelet-config.yaml") }
func (f Files) kubeconfig() string { return filepath.Join(f.KubeletDir, "kubeconfig") }
func (f Files) bootstrap() string  { return filepath.Join(f.KubeletDir, "bootstrap.kubeconfig") }

// File is a file to write.
type File struct {
	Path string
	Mode fs.FileMode
	Data []byte
	Kept bool // it is there already, with this content
}

// A Plan is what a join writes. Make one with Prepare.
type Plan struct{ Files []File }

// plan makes the files. It refuses a machine that is a node already, and files with another
// content.
func plan(o Options, f found) (*Plan, error) {
	bootstrap, err := bootstrapKubeconfig(o, o.Files.CA)
	if err != nil {
		return nil, err
	}
	p := &Plan{Files: []File{
		{Path: o.Files.CA, Mode: 0o644, Data: f.ca},
		{Path: o.Files.bootstrap(), Mode: 0o600, Data: bootstrap},
		{Path: o.Files.config(), Mode: 0o644, Data: append(kubeletConfig(o, f), resolver()...)},
	}}
	if o.Files.Unit != "" {
		p.Files = append(p.Files, File{Path: o.Files.Unit, Mode: 0o644, Data: unit(o)})
	}
	var errs []error
	if _, err := os.Lstat(o.Files.kubeconfig()); err == nil {
		errs = append(errs, advice.With(fmt.Errorf("%s exists: this machine is a node already", o.Files.kubeconfig()),
			"to join it anew, stop the kubelet, run kthwd node remove NAME on a controller, and move "+o.Files.KubeletDir+" away"))
	}
	for i := range p.Files {
		file := &p.Files[i]
		there, err := os.ReadFile(file.Path)
		switch {
		case err == nil && bytes.Equal(there, file.Data):
			file.Kept = true
		case err == nil && file.Path == o.Files.bootstrap(): // of a join that was not finished: its token is another
		case err == nil:
			errs = append(errs, advice.With(fmt.Errorf("%s exists, and is another file", file.Path), "move it away, or choose other paths with the flags"))
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err)
		}
	}
	return p, errors.Join(errs...)
}

// Write writes the files. After an error none that it has made is left.
func (p *Plan) Write() (made []string, err error) {
	defer func() {
		if err != nil {
			for _, path := range made {
				_ = os.Remove(path)
			}
			made = nil
		}
	}()
	for _, f := range p.Files {
		if f.Kept {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(f.Path), 0o755); err != nil {
			return made, err
		}
		if err := durable.Write(f.Path, f.Data, f.Mode); err != nil {
			return made, err
		}
		made = append(made, f.Path)
	}
	return made, nil
}

// kubeletConfig is the guide's, with certificates that the kubelet asks for and renews.
func kubeletConfig(o Options, f found) []byte {
	dns, _ := json.Marshal(f.cluster.DNS)       // JSON is YAML
	domain, _ := json.Marshal(f.cluster.Domain) // the same
	return fmt.Appendf(nil, `# Made by kthwd node join.
kind: KubeletConfiguration
apiVersion: kubelet.config.k8s.io/v1beta1
authentication:
  anonymous:
    enabled: false
  webhook:
    enabled: true
  x509:
    clientCAFile: %s
authorization:
  mode: Webhook
rotateCertificates: true
serverTLSBootstrap: true
clusterDomain: %s
clusterDNS: %s
cgroupDriver: %s
containerRuntimeEndpoint: %s
`, o.Files.CA, domain, dns, o.Files.CgroupDriver, o.Files.Runtime)
}

// resolver is the line of the kubelet's configuration about this machine's resolver.
func resolver() string {
	if _, err := os.Stat(resolved); err != nil {
		return ""
	}
	return "resolvConf: " + resolved + "\n"
}

func unit(o Options) []byte {
	args := []string{
		"--config=" + o.Files.config(), "--kubeconfig=" + o.Files.kubeconfig(), "--bootstrap-kubeconfig=" + o.Files.bootstrap(),
		"--root-dir=" + o.Files.KubeletDir, "--cert-dir=" + filepath.Join(o.Files.KubeletDir, "pki"), "--hostname-override=" + o.Name,
	}
	if o.Files.NodeIP != "" {
		args = append(args, "--node-ip="+o.Files.NodeIP)
	}
	return fmt.Appendf(nil, `# Made by kthwd node join.
[Unit]
Description=Kubernetes Kubelet
Documentation=https://kubernetes.io/docs/reference/command-line-tools-reference/kubelet/
After=containerd.service network-online.target
Wants=network-online.target

[Service]
ExecStart=%s \
  %s
Restart=always
RestartSec=5

[Install]
WantedBy=multi-user.target
`, o.Files.Kubelet, strings.Join(args, " \\\n  "))
}
