package upgrade

import (
	"path/filepath"
	"testing"

	"github.com/coreos/go-semver/semver"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"
)

// database is the part of etcd's server that reads the format of its database.
type database struct{ backend.Backend }

func (d database) StorageVersion() *semver.Version {
	v, err := schema.DetectSchemaVersion(zap.NewNop(), d.ReadTx())
	if err != nil {
		return nil
	}
	return &v
}

// A database that etcd has closed says nothing, and ends nothing.
func TestStorageVersionOfAClosedDatabase(t *testing.T) {
	d := database{backend.NewDefaultBackend(zap.NewNop(), filepath.Join(t.TempDir(), "db"))}
	if _, open := storageVersion(d); !open {
		t.Error("the open database is not open")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if v, open := storageVersion(d); open || v != nil {
		t.Errorf("got %v, open %v, of the closed database", v, open)
	}
}
