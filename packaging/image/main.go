// Command image makes an OCI image of kthwd, as a tar archive with an OCI image layout.
//
//	image -version v0.1.0 -label NAME=VALUE -out FILE amd64=BINARY arm64=BINARY
//
// The index in it has one image for each architecture: the static binary, links with the
// names of upstream's programs, a user, and nothing else. The same binaries and
// SOURCE_DATE_EPOCH make the same bytes.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// uid is the user and the group that the image runs as, those of distroless' nonroot.
const uid = 65532

// programs are the names of upstream's programs, as in packaging/install.sh.
var programs = []string{"etcd", "etcdctl", "etcdutl", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"}

func main() {
	o := options{labels: map[string]string{}}
	flag.StringVar(&o.version, "version", "", "such as v0.1.0")
	flag.StringVar(&o.out, "out", "", "the archive")
	flag.Func("label", "NAME=VALUE, a label of the image; repeatable", func(s string) error {
		name, value, found := strings.Cut(s, "=")
		if !found {
			return errors.New("want NAME=VALUE")
		}
		o.labels[name] = value
		return nil
	})
	flag.Parse()
	if err := o.build(flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "image: error:", err)
		os.Exit(1)
	}
}

type options struct {
	version, out string
	labels       map[string]string
	date         time.Time
}

// build makes the archive of ARCHITECTURE=BINARY.
func (o options) build(binaries []string) error {
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	o.date = time.Unix(seconds, 0).UTC()
	if o.out == "" || o.version == "" || len(binaries) == 0 {
		return errors.New("want -version, -out and at least one ARCHITECTURE=BINARY")
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, b := range binaries {
		arch, path, found := strings.Cut(b, "=")
		if !found {
			return fmt.Errorf("%q is not ARCHITECTURE=BINARY", b)
		}
		image, err := o.image(arch, path)
		if err != nil {
			return err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	dir, err := os.MkdirTemp(filepath.Dir(o.out), ".image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	top, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	// The names by which tools find the image in the archive: the specification's, and containerd's.
	if err := top.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": o.version,
		"io.containerd.image.name":          "kthwd:" + o.version,
	})); err != nil {
		return err
	}
	return archive(dir, o.out, o.date)
}

// image is the image of one architecture.
func (o options) image(arch, binary string) (v1.Image, error) {
	data, err := o.layer(binary)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.Append(image, mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: o.date}, CreatedBy: "packaging/image"}})
	if err != nil {
		return nil, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Created = "linux", arch, v1.Time{Time: o.date}
	file.Config = v1.Config{
		User:         fmt.Sprintf("%d:%d", uid, uid),
		Entrypoint:   []string{"/usr/bin/kthwd"},
		Env:          []string{"PATH=/usr/bin:/usr/lib/kthwd/bin", "HOME=/tmp"},
		WorkingDir:   "/",
		StopSignal:   "SIGTERM",
		ExposedPorts: map[string]struct{}{"6443/tcp": {}, "2379/tcp": {}, "2380/tcp": {}},
		Volumes:      map[string]struct{}{"/var/lib/kubernetes": {}},
		Labels:       o.labels,
	}
	return mutate.ConfigFile(image, file)
}

// layer is the file system of an image, compressed.
func (o options) layer(binary string) ([]byte, error) {
	var b bytes.Buffer
	plugins := "usr/"
	compressed, err := gzip.NewWriterLevel(&b, gzip.DefaultCompression)
	if err != nil {
		return nil, err
	}
	w := writer{tar.NewWriter(compressed), o.date}
	w.dir("etc/", 0o755, 0)
	w.file("etc/group", 0o644, fmt.Appendf(nil, "root:x:0:\nkthwd:x:%d:\n", uid))
	w.file("etc/passwd", 0o644, fmt.Appendf(nil, "root:x:0:0:root:/:/sbin/nologin\nkthwd:x:%d:%d:kthwd:/tmp:/sbin/nologin\n", uid, uid))
	w.dir("tmp/", 0o1777, 0)
	for _, d := range []string{"usr/", "usr/bin/"} {
		w.dir(d, 0o755, 0)
	}
	data, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	w.file("usr/bin/kthwd", 0o755, data)
	for _, d := range []string{"usr/lib/", "usr/lib/kthwd/", "usr/lib/kthwd/bin/"} {
		w.dir(d, 0o755, 0)
	}
	// kube-controller-manager would make its directory of plugins, and the root is read-only.
	for d := range strings.SplitSeq("libexec kubernetes kubelet-plugins volume exec", " ") {
		plugins += d + "/"
		w.dir(plugins, 0o755, 0)
	}
	for _, name := range programs {
		w.link("usr/lib/kthwd/bin/"+name, "../../../bin/kthwd")
	}
	for _, d := range []string{"var/", "var/lib/"} {
		w.dir(d, 0o755, 0)
	}
	w.dir("var/lib/kubernetes/", 0o700, uid)
	if err := errors.Join(w.Close(), compressed.Close()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// writer writes entries of one date. Its Close returns the first error, as archive/tar's does.
type writer struct {
	*tar.Writer
	date time.Time
}

func (w writer) add(h tar.Header, data []byte) {
	h.ModTime, h.Format, h.Size = w.date, tar.FormatPAX, int64(len(data))
	if w.WriteHeader(&h) == nil {
		_, _ = w.Write(data) // a short one fails in Close
	}
}

func (w writer) dir(name string, mode int64, owner int) {
	w.add(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, Uid: owner, Gid: owner}, nil)
}

func (w writer) file(name string, mode int64, data []byte) {
	w.add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, data)
}

func (w writer) link(name, to string) {
	w.add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}, nil)
}

// archive writes the directory as a tar file, its entries in the order of their names.
func archive(dir, out string, date time.Time) (err error) {
	f, err := os.CreateTemp(filepath.Dir(out), ".image-*.tar")
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	var names []string
	if err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		names = append(names, path)
		return err
	}); err != nil {
		return err
	}
	slices.Sort(names)
	w := writer{tar.NewWriter(f), date}
	for _, path := range names[1:] { // without the directory itself
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if info, err := os.Stat(path); err != nil {
			return err
		} else if info.IsDir() {
			w.dir(name+"/", 0o755, 0)
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		w.file(name, 0o644, data)
	}
	if err := errors.Join(w.Close(), f.Chmod(0o644)); err != nil {
		return err
	}
	return os.Rename(f.Name(), out)
}
