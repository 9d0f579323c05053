package readdress

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"kthwd/appliance/advice"
	"kthwd/appliance/datadir"
	"kthwd/appliance/durable"
	"kthwd/appliance/pki"
	"kthwd/appliance/text"
)

// owned lists the certificates at this machine's names: kubernetes.pem, and etcd.pem where etcd
// has a CA of its own.
func (c *Change) owned() []string {
	if datadir.Exists(c.layout.Cert(pki.NameEtcd)) {
		return []string{pki.NameKubernetes, pki.NameEtcd}
	}
	return []string{pki.NameKubernetes}
}

// certificate returns a pair that is valid at the new address, to speak with etcd on the others
// before the files are replaced. It fails if one of the files could not be made anew here.
func (c *Change) certificate() (pair tls.Certificate, err error) {
	speaks := strings.TrimSuffix(filepath.Base(pki.StageOf(c.layout).Files(c.layout).Cert), ".pem")
	for _, name := range c.owned() {
		one, err := c.valid(name)
		if err != nil {
			return pair, err
		}
		if name == speaks {
			pair = one
		}
	}
	return pair, nil
}

// valid returns the pair of that name if it is valid at the new address, or one that is, made in
// memory.
func (c *Change) valid(name string) (tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(c.layout.Cert(name), c.layout.Key(name))
	if err != nil || c.names(pair) {
		return pair, err
	}
	made, err := pki.IssueController(c.layout, []string{c.o.Address}, name)
	if errors.Is(err, pki.ErrNoCAKey) {
		return pair, advice.With(fmt.Errorf("%s is not valid at %s, and the key of its CA, which could make one that is, is not here", c.layout.Cert(name), c.o.Address),
			fmt.Sprintf("where the keys are: kthwd pki controller %s %s --data-dir=DIR; copy the certificates and keys that it makes in place of those here, keep the old ones beside them, then run this again",
				text.ShellWord(c.self.Name), c.o.Address))
	}
	if err != nil {
		return pair, err
	}
	return tls.X509KeyPair(made.Files[name+".pem"], made.Files[name+"-key.pem"])
}

// names reports whether a certificate is valid at the new address.
func (c *Change) names(pair tls.Certificate) bool {
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	return err == nil && leaf.VerifyHostname(c.o.Address) == nil
}

// renewCertificates has the certificates at this machine's names made anew, with all names of
// those before them and the new address, unless they name the address already.
func (c *Change) renewCertificates() error {
	var files []string
	complete := true // an interrupted change has moved some away, and has recorded their names
	for _, name := range c.owned() {
		pair, err := tls.LoadX509KeyPair(c.layout.Cert(name), c.layout.Key(name))
		complete = complete && err == nil
		if err != nil || !c.names(pair) {
			files = append(files, c.layout.Cert(name), c.layout.Key(name))
		}
	}
	if len(files) == 0 {
		return nil
	}
	if complete {
		if err := pki.RecordNames(c.layout); err != nil { // the new ones keep these
			return err
		}
	}
	if err := c.makeAnew(files...); err != nil {
		return err
	}
	c.o.Say(fmt.Sprintf("made     %s for %s, with the names of those before, which are in old", strings.Join(files, ", "), c.o.Address))
	return nil
}

// makeAnew moves the files away and has them made anew. It puts them back if that fails.
func (c *Change) makeAnew(files ...string) (err error) {
	moved := map[string]string{}
	defer func() {
		for file, from := range moved {
			if err != nil && from != "" {
				err = errors.Join(err, os.Rename(from, file))
			}
		}
	}()
	for _, file := range files {
		if moved[file], err = aside(file); err != nil {
			return err
		}
	}
	_, err = pki.Ensure(c.layout, c.cfg.PKISpec())
	return err
}

// writeKubeconfigs replaces the server at the old address in this machine's kubeconfigs.
func (c *Change) writeKubeconfigs() error {
	server := func(host string) []byte {
		return []byte("server: https://" + net.JoinHostPort(host, strconv.Itoa(c.cfg.SecurePort)) + "\n")
	}
	var errs []error
	for _, name := range []string{pki.NameAdmin, pki.NameControllerManager, pki.NameScheduler} {
		path := c.layout.Kubeconfig(name)
		data, err := os.ReadFile(path)
		if err != nil {
			continue // a start makes it, or says why not
		}
		changed := bytes.ReplaceAll(data, server(c.old), server(c.o.Address))
		if bytes.Equal(changed, data) {
			continue
		}
		if err := durable.Write(path, changed, 0o600); err != nil {
			errs = append(errs, err)
			continue
		}
		c.o.Say("wrote    " + path)
	}
	return errors.Join(errs...)
}

// writeFile writes the address into the configuration file.
func (c *Change) writeFile() error {
	if c.o.File == "" {
		c.o.Say("note     there is no configuration file: start kthwd with --advertise-address=" + c.o.Address)
		return nil
	}
	info, err := os.Stat(c.o.File)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(c.o.File)
	if err != nil {
		return err
	}
	changed, rest := edit(data, c.self.Name, c.old, c.o.Address, c.places())
	if !bytes.Equal(changed, data) {
		if err := durable.Write(c.o.File, changed, info.Mode().Perm()); err != nil {
			return err
		}
		c.o.Say("wrote    " + c.o.File)
	}
	for _, line := range rest {
		c.o.Say(fmt.Sprintf("note     %s still names %s: %s", c.o.File, c.old, text.Line(line)))
	}
	return nil
}

// places returns the addresses of the other controllers; none where nobody has told them.
func (c *Change) places() map[string]string {
	all := map[string]string{}
	for _, m := range c.others {
		if c.learned && m.Name != "" && len(m.PeerURLs) > 0 {
			all[m.Name] = hostOf(m.PeerURLs[0])
		}
	}
	return all
}

// edit returns a configuration file with the new address where the old one was this
// controller's: as the value of a key about this machine, or in its entry of initial-cluster.
// The entries of others there get the addresses that those have now, by name, for a list with an
// address that two of them have is refused. Comments and everything else stay. rest lists the
// other lines with the old address.
func edit(file []byte, name, old, new string, others map[string]string) (changed []byte, rest []string) {
	own := regexp.MustCompile(`^(advertise-address|bind-address|health-address|metrics-address)(\s*:\s*["']?\[?)` + regexp.QuoteMeta(old) + `(\]?(:\d+)?["']?\s*(#.*)?)$`)
	advertised := regexp.MustCompile(`^(advertise-address\s*:\s*)[^#]*?(\s*(#.*)?)$`)
	places := maps.Clone(others)
	if places == nil {
		places = map[string]string{}
	}
	places[name] = new
	mention := regexp.MustCompile(`(^|[^0-9A-Fa-f.:])` + regexp.QuoteMeta(old) + `($|[^0-9A-Fa-f.])`)
	lines := strings.Split(strings.TrimSuffix(string(file), "\n"), "\n")
	found, inList := false, false
	for i, line := range lines {
		key, _, isKey := strings.Cut(line, ":")
		if isKey && key != "" && !strings.ContainsAny(key[:1], " \t-#") {
			inList = strings.TrimSpace(key) == "initial-cluster"
		}
		switch {
		case advertised.MatchString(line):
			found = true
			line = advertised.ReplaceAllString(line, "${1}"+quoted(new)+"${2}")
		case inList:
			for name, at := range places {
				line = regexp.MustCompile(`(^|[\s,\["'])`+regexp.QuoteMeta(name)+`=([0-9A-Fa-f.:]+)`).ReplaceAllString(line, "${1}"+name+"="+at)
			}
		default:
			line = own.ReplaceAllString(line, "${1}${2}"+new+"${3}")
		}
		lines[i] = line
		if mention.MatchString(line) && !strings.HasPrefix(strings.TrimSpace(line), "#") {
			rest = append(rest, strings.TrimSpace(line))
		}
	}
	if !found {
		lines = append(lines, "advertise-address: "+quoted(new))
	}
	return []byte(strings.Join(lines, "\n") + "\n"), rest
}

// quoted is an address as a YAML string.
func quoted(address string) string {
	if strings.Contains(address, ":") {
		return strconv.Quote(address)
	}
	return address
}
