package paths

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Written returns what another user than root and the one of this process could have written on the
// way to path: the file itself, or a directory above it. "" means that there is none. The path is
// absolute and has no symbolic links: see filepath.EvalSymlinks.
func Written(path string) (at string, err error) {
	for at = path; ; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		if err != nil {
			return "", err
		}
		owner, known := info.Sys().(*syscall.Stat_t)
		sticky := info.IsDir() && info.Mode()&fs.ModeSticky != 0 // others cannot rename what is in it
		if !known || owner.Uid != 0 && int(owner.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 && !sticky {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", nil
		}
	}
}
