// Command nfpm makes a Debian or RPM package from a directory tree that
// packaging/install.sh has written.
//
//	nfpm -kind deb -arch amd64 -version v0.1.0 -root TREE -scripts DIR -out DIR
//
// -scripts holds the package's scripts, as packaging/scripts.sh writes them.
// The same tree and SOURCE_DATE_EPOCH make the same bytes.
package main

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm"
)

const description = `Kubernetes control plane in one process, or its load balancer
 kthwd runs etcd, kube-apiserver, kube-controller-manager and kube-scheduler
 as one daemon with one systemd unit, configured by one file. As a load
 balancer it stands before several such controllers.
 .
 Nothing is started by the installation: edit /etc/kthwd/controller.yaml or
 lb.yaml, then enable kthwd-controller.service or kthwd-lb.service.`

func main() {
	var o options
	flag.StringVar(&o.kind, "kind", "deb", "deb or rpm")
	flag.StringVar(&o.arch, "arch", "amd64", "Go's name of the architecture")
	flag.StringVar(&o.version, "version", "", "such as v0.1.0")
	flag.StringVar(&o.root, "root", "", "the tree")
	flag.StringVar(&o.scripts, "scripts", "", "directory of the scripts")
	flag.StringVar(&o.out, "out", ".", "directory of the package")
	flag.Parse()
	path, err := o.build()
	if err != nil {
		fmt.Fprintln(os.Stderr, "nfpm: error:", err)
		os.Exit(1)
	}
	fmt.Println(path)
}

type options struct{ kind, arch, version, root, scripts, out string }

func (o options) build() (string, error) {
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return "", fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	date := time.Unix(seconds, 0).UTC()
	info := &nfpm.Info{
		Name: "kthwd", Arch: o.arch, Platform: "linux", Version: packageVersion(o.version), Release: "1",
		Section: "admin", Priority: "optional", Maintainer: "kthwd maintainers <kthwd@example.com>",
		Homepage: "https://example.com/kthwd", License: "Apache-2.0", Vendor: "kthwd",
		Description: description, DisableGlobbing: true, MTime: date,
	}
	if info.Contents, err = o.contents(date); err != nil {
		return "", err
	}
	o.relations(info)
	packager, err := nfpm.Get(o.kind)
	if err != nil {
		return "", err
	}
	info = nfpm.WithDefaults(info)
	path := filepath.Join(o.out, packager.ConventionalFileName(info))
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := packager.Package(info, f); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return path, f.Close()
}

// ahead matches the output of git describe for a commit after a tag.
var ahead = regexp.MustCompile(`-([0-9]+)-g([0-9a-f]+)(-dirty)?$`)

// packageVersion makes v0.1.0-12-gabc, twelve commits after v0.1.0, sort after v0.1.0,
// and v0.1.0-rc1 before it.
func packageVersion(v string) string {
	return strings.ReplaceAll(ahead.ReplaceAllString(v, "+$1.g$2$3"), "-dirty", ".dirty")
}

// relations adds the scripts and the package's requirements. Version 247 of systemd is
// the first that supports every setting in the units.
func (o options) relations(info *nfpm.Info) {
	script := func(name string) string { return filepath.Join(o.scripts, o.kind+"-"+name) }
	if o.kind == "deb" {
		info.Scripts = nfpm.Scripts{
			PreInstall: script("preinst"), PostInstall: script("postinst"), PreRemove: script("prerm"), PostRemove: script("postrm"),
		}
		info.Depends = []string{"systemd (>= 247)"}
		info.Recommends = []string{"ca-certificates", "logrotate"}
		info.License, info.Deb.Compression = "", "gzip" // in copyright; xz takes minutes for a seventh less
		// restart_steps runs again after an upgrade of systemd: until Debian 12 here, from 13 on there.
		info.Deb.Triggers.InterestNoAwait = []string{"/lib/systemd/systemd", "/usr/lib/systemd/systemd"}
		return
	}
	info.Scripts = nfpm.Scripts{
		PreInstall: script("pre"), PostInstall: script("post"), PreRemove: script("preun"), PostRemove: script("postun"),
	}
	info.Depends = []string{"systemd >= 247"}
	info.Recommends = []string{"ca-certificates", "logrotate"}
	info.RPM.BuildHost = "localhost"
	info.RPM.Compression = "gzip"
	info.RPM.Summary = strings.SplitN(description, "\n", 2)[0]
}

// own are the directories that belong to kthwd alone. rpm leaves behind directories
// that no package names; a Debian package names each automatically.
var own = []string{"/etc/kthwd", "/usr/lib/kthwd", "/usr/lib/kthwd/bin", "/usr/share/kthwd", "/usr/share/licenses/kthwd"}

// private are the settings that only root and a group may read. An RPM makes the groups before
// its files; of a Debian package, whose groups have no fixed numbers, the script does it
// (Debian Policy 10.9).
var private = map[string]string{"/etc/kthwd/controller.yaml": "kthwd", "/etc/kthwd/lb.yaml": "kthwd-lb"}

// contents lists the files of the tree. Files below /etc belong to the user once they
// are installed.
func (o options) contents(date time.Time) (all files.Contents, err error) {
	if o.kind == "rpm" {
		for _, dir := range own {
			all = append(all, &files.Content{
				Destination: dir, Type: files.TypeDir,
				FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: 0o755, MTime: date},
			})
		}
	}
	err = filepath.WalkDir(o.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, filepath.Clean(o.root))
		c := &files.Content{
			Source: path, Destination: name, Type: files.TypeFile,
			FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: info.Mode().Perm(), MTime: date},
		}
		if d.Type() == fs.ModeSymlink {
			c.Type = files.TypeSymlink
			if c.Source, err = os.Readlink(path); err != nil {
				return err
			}
		}
		if strings.HasPrefix(name, "/etc/") {
			c.Type = files.TypeConfigNoReplace
		}
		if group, ok := private[name]; ok && o.kind == "rpm" {
			c.FileInfo.Group, c.FileInfo.Mode = group, 0o640
		}
		all = append(all, c)
		return nil
	})
	return all, err
}
