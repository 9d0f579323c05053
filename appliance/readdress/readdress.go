// Package readdress gives a controller another address, while no kthwd runs on its data.
//
//	c, err := readdress.Begin(readdress.Options{Config: cfg, File: file, Address: "10.0.1.50"})
//	defer c.Close()
//	err = c.Run(ctx)
//
// Begin takes the data directory's lock and refuses every address that cannot be right. Run asks
// the other controllers who the members are now, refuses the address of another one, changes the
// peer URL through the quorum of the others, has kubernetes.pem made
// anew with all names of the old one, and writes the address into the configuration file and
// the kubeconfigs. Each step may be repeated: after an interruption the same call continues.
// The old files are moved into the directory old beside them.
//
// A change that leaves the others without a quorum until this controller is back is refused,
// unless Options.AtStart leaves the peer URL to the next start, which corrects it as soon as
// there is a quorum (package membership).
package readdress

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/pki"
	"kthwd/appliance/text"
)

// Options is the input of Begin.
type Options struct {
	Config  config.Controller // as the file and the flags have it, resolved
	File    string            // the configuration file, which Run changes; empty means none
	Address string            // the new address
	AtStart bool              // the next start changes the peer URL, not Run
	Say     func(line string) // receives each completed step, for a person; must not be nil
}

// Change is a change of the address. Make one with Begin; the caller must Close it.
type Change struct {
	o       Options
	cfg     config.Controller // with the new address
	layout  pki.Layout
	lock    *os.File
	self    etcdfiles.StoredMember
	others  []etcdfiles.StoredMember // as stored, until learn has asked them
	old     string                   // the address in the membership
	learned bool                     // others are as they have told
}

// Begin locks the data directory and checks the address. It changes nothing.
func Begin(o Options) (_ *Change, err error) {
	c := &Change{o: o, cfg: o.Config, layout: o.Config.Layout()}
	if _, err := os.Stat(filepath.Join(c.layout.Etcd(), "member")); err != nil {
		return nil, advice.With(fmt.Errorf("no data of etcd in %s: %w", c.layout.Etcd(), err), "name the directory with --data-dir, or the configuration file with --config; a controller that has never run takes its address from --advertise-address")
	}
	if c.lock, err = datadir.Lock(c.layout); err != nil {
		return nil, err // with the advice that fits: its user, its mode, or a kthwd that runs
	}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if err := c.readMembers(); err != nil {
		return nil, err
	}
	if err := c.refuse(o.Address); err != nil {
		return nil, err
	}
	c.cfg.AdvertiseAddress = o.Address
	if c.cfg.BindAddress == c.old {
		c.cfg.BindAddress = o.Address
	}
	return c, writable(o.File)
}

// Close releases the data directory.
func (c *Change) Close() {
	_ = c.lock.Truncate(0)
	c.lock.Close()
}

// Old returns the address that the members of etcd know.
func (c *Change) Old() string { return c.old }

// readMembers reads who this member is, and who the others are.
func (c *Change) readMembers() error {
	record, err := etcdfiles.ReadRecord(c.layout)
	if err != nil {
		return err
	}
	dir := filepath.Join(c.layout.Etcd(), "member")
	members, _, err := etcdfiles.ReadStore(dir)
	if err != nil {
		return err
	}
	if record == nil { // it has never had a quorum
		ids, err := etcdfiles.ReadIDs(filepath.Join(dir, "wal"))
		if err != nil {
			return err
		}
		record = &ids
	}
	for _, m := range members {
		if m.ID == record.Member {
			c.self = m
		} else {
			c.others = append(c.others, m)
		}
	}
	if len(c.self.PeerURLs) == 0 {
		return fmt.Errorf("%s does not list this member, %s", dir, record.Member)
	}
	c.old = hostOf(c.self.PeerURLs[0])
	return nil
}

// taken returns an error if another member has the new address. On loopback all may have one.
func (c *Change) taken() error {
	if ip, err := netip.ParseAddr(c.o.Address); err == nil && ip.IsLoopback() {
		return nil
	}
	for _, m := range c.others {
		if slices.ContainsFunc(m.PeerURLs, func(u string) bool { return hostOf(u) == c.o.Address }) {
			return advice.With(fmt.Errorf("%s is the address of another controller, %s", c.o.Address, text.Line(m.Name)), "give an address of this machine; ip address lists them")
		}
	}
	return nil
}

// refuse returns why a controller cannot have this address, with any other members, or nil.
func (c *Change) refuse(address string) error {
	if _, err := config.ParseMember(c.self.Name, address); err != nil {
		return advice.With(err, "give an IP address of this machine; ip address lists them")
	}
	ip := netip.MustParseAddr(address)
	if before, err := netip.ParseAddr(c.old); ip.IsLoopback() && (err != nil || !before.IsLoopback()) {
		return advice.With(fmt.Errorf("%s is loopback, which no other machine reaches", address), "give an address of this machine's network; ip address lists them")
	}
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		return advice.With(fmt.Errorf("this machine does not have the address %s", address), "give one of those that ip address lists here")
	}
	return l.Close()
}

// writable refuses a configuration file that cannot be changed.
func writable(file string) error {
	if file == "" {
		return nil
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return advice.With(err, "run this as a user that can write "+file)
	}
	return f.Close()
}

// Run makes the change.
func (c *Change) Run(ctx context.Context) error {
	pair, err := c.certificate()
	if err != nil {
		return err
	}
	config, err := c.clientTLS(pair)
	if err != nil {
		return err
	}
	c.learn(ctx, config)
	if err := c.taken(); err != nil {
		return err
	}
	switch {
	case c.o.AtStart:
		c.o.Say("left     the peer URL to the next start, which changes it when there is a quorum")
	case len(c.others) == 0:
		c.o.Say("left     the peer URL to the next start: this is the only member")
	default:
		if err := c.changePeerURL(ctx, config); err != nil {
			return err
		}
	}
	return errors.Join(c.writeFile(), c.writeKubeconfigs(), c.renewCertificates())
}

// peerURL returns this member's new peer URL.
func (c *Change) peerURL() string {
	return "https://" + net.JoinHostPort(c.o.Address, strconv.Itoa(c.cfg.EtcdPeerPort))
}

func hostOf(peerURL string) string {
	u, err := url.Parse(peerURL)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// aside moves a file into the directory old beside it, under a name with the time, and returns
// its path there. A file that is missing is no error.
func aside(path string) (moved string, err error) {
	dir := filepath.Join(filepath.Dir(path), "old")
	if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
		return "", err
	}
	stamp := time.Now().UTC().Format("20060102T150405Z")
	name, ext, _ := strings.Cut(filepath.Base(path), ".")
	moved = filepath.Join(dir, name+"-"+stamp+"."+ext)
	if err := os.Rename(path, moved); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	return moved, nil
}
