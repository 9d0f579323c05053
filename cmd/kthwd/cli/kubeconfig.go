package cli

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"k8s.io/client-go/tools/clientcmd"

	"kthwd/appliance/advice"
	"kthwd/appliance/paths"
)

// mostKubeconfig is far more than a kubeconfig needs.
const mostKubeconfig = 1 << 20

// MayUse is an error for a kubeconfig that this process must not use, and for one that it cannot read.
func (t Target) MayUse(path string) error {
	f, info, err := paths.OpenRegular(path, true)
	if err != nil {
		return err
	}
	defer f.Close()
	return t.mayUse(f, info)
}

// mayUse refuses the kubeconfig of another user that names a command or a file of a token: a client
// would execute the one and send the other as the user of this process, which may be root.
func (t Target) mayUse(f *os.File, info fs.FileInfo) error {
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid == 0 || int(owner.Uid) == os.Geteuid() {
		return nil
	}
	data, err := io.ReadAll(io.LimitReader(f, mostKubeconfig))
	if err != nil {
		return err
	}
	c, err := clientcmd.Load(data)
	if err != nil {
		return nil // the client says what is wrong with it
	}
	for _, u := range c.AuthInfos {
		if u.Exec == nil && u.AuthProvider == nil && u.TokenFile == "" {
			continue
		}
		name := sudoName(owner.Uid)
		return advice.With(fmt.Errorf("%s is of the user %s, and names a command or a file of a token, which is not used for another user", f.Name(), name),
			"run this as that user: "+t.as(name)+"; or name a kubeconfig with --kubeconfig or KUBECONFIG")
	}
	return nil
}

// sudoName is a user as sudo(8) takes it: a number begins with #.
func sudoName(uid uint32) string {
	number := strconv.Itoa(int(uid))
	if u, err := user.LookupId(number); err == nil {
		return u.Username
	}
	return "#" + number
}
