// Package manifest puts the objects of YAML and JSON files into a cluster.
//
//	crds, err := manifest.Read(paths, manifest.Definitions)
//	err = manifest.New(config).Apply(ctx, crds)
//
// Read asks no cluster, so that a mistake in a file is found before one is started. Apply is a
// server-side apply of each object in its order; it returns when the definitions among them
// are established and their kinds can be used.
package manifest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"kthwd/appliance/advice"
	"kthwd/appliance/text"
)

// Object is one object of a file.
type Object struct {
	Place string // FILE:NUMBER, the document in the file from 1
	*unstructured.Unstructured
}

func (o Object) String() string { return o.Place + ": " + o.GetKind() + " " + o.GetName() }

var definitions = schema.GroupKind{Group: apiextensions.GroupName, Kind: "CustomResourceDefinition"}

// All keeps every object.
func All(Object) bool { return true }

// Definitions keeps CustomResourceDefinitions.
func Definitions(o Object) bool { return o.GroupVersionKind().GroupKind() == definitions }

var extensions = []string{".yaml", ".yml", ".json"}

// Read returns the objects in files that keep keeps, in their order. Of a directory it reads
// the files whose names end in .yaml, .yml or .json, in the order of their names, and not
// those of the directories in it. Each path must have an object to keep. The error has the
// problems of all paths.
func Read(paths []string, keep func(Object) bool) (all []Object, err error) {
	var errs []error
	for _, path := range paths {
		files, err := filesOf(path)
		if err != nil {
			errs = append(errs, advice.With(err, "name a file, or a directory of files "+strings.Join(extensions, ", ")))
			continue
		}
		before, failed := len(all), false
		for _, file := range files {
			objects, err := readFile(file)
			if err != nil {
				errs, failed = append(errs, err), true
			}
			for _, o := range objects {
				if keep(o) {
					all = append(all, o)
				}
			}
		}
		if len(all) == before && !failed {
			errs = append(errs, advice.With(fmt.Errorf("%s: has no object of the kind that is looked for", path),
				"--crd takes CustomResourceDefinitions, --apply all objects; of a directory the files "+strings.Join(extensions, ", ")+" are read, and none below it"))
		}
	}
	return all, errors.Join(errs...)
}

func filesOf(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if slices.Contains(extensions, filepath.Ext(e.Name())) && !e.IsDir() {
			files = append(files, filepath.Join(path, e.Name()))
		}
	}
	return files, nil
}

// most is far more than a file of manifests needs, and protects from one that never ends.
const most = 64 << 20

func readFile(path string) ([]Object, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	if len(data) > most {
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("more than %d MiB", most>>20)}
	}
	return decode(path, data)
}

// decode takes the documents of a file apart, and lists in them.
func decode(path string, data []byte) (all []Object, err error) {
	var errs []error
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for number := 1; ; number++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return all, errors.Join(errs...)
		}
		place := fmt.Sprintf("%s:%d", path, number)
		if err != nil {
			return all, errors.Join(append(errs, fmt.Errorf("%s: %w", place, err))...)
		}
		objects, err := decodeDocument(place, document)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %s", place, text.Joined(err.Error())))
		}
		all = append(all, objects...)
	}
}

func decodeDocument(place string, document []byte) ([]Object, error) {
	data, err := yaml.YAMLToJSONStrict(document)
	if err != nil {
		return nil, err
	}
	if data = bytes.TrimSpace(data); len(data) == 0 || string(data) == "null" {
		return nil, nil // only comments
	}
	u := &unstructured.Unstructured{}
	switch err := u.UnmarshalJSON(data); {
	case runtime.IsMissingKind(err) || runtime.IsMissingVersion(err): // it has the whole document in it, which may hold secrets
		return nil, errNoKind
	case err != nil:
		return nil, err
	}
	if !u.IsList() {
		return named(Object{place, u})
	}
	var all []Object
	err = u.EachListItem(func(item runtime.Object) error {
		o, err := named(Object{place, item.(*unstructured.Unstructured)})
		all = append(all, o...)
		return err
	})
	return all, err
}

var errNoKind = errors.New("an object without apiVersion and kind")

// named refuses an object that cannot be applied.
func named(o Object) ([]Object, error) {
	switch {
	case o.GetKind() == "" || o.GetAPIVersion() == "":
		return nil, errNoKind
	case o.GetName() == "":
		return nil, fmt.Errorf("%s without metadata.name", o.GetKind())
	}
	return []Object{o}, nil
}
