// Command runtime asks the plugins of a network what a container runtime asks that speaks CNI 1.1, through the library
// that runtimes use. cnitool does, too, but cannot say which containers there are: for its `gc` there are none.
//
//	runtime status NETWORK
//	runtime gc NETWORK CONTAINER...     (each with one interface, eth0)
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

const (
	configurations = "/etc/cni/net.d"
	plugins        = "/opt/cni/bin"
	interfaceName  = "eth0"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: runtime status NETWORK | runtime gc NETWORK CONTAINER...")
	}
	network, err := libcni.LoadNetworkConf(configurations, args[1])
	if err != nil {
		return err
	}
	runtime := libcni.NewCNIConfig([]string{plugins}, nil)
	switch args[0] {
	case "status":
		return runtime.GetStatusNetworkList(context.Background(), network)
	case "gc":
		valid := []types.GCAttachment{}
		for _, container := range args[2:] {
			valid = append(valid, types.GCAttachment{ContainerID: container, IfName: interfaceName})
		}
		return runtime.GCNetworkList(context.Background(), network, &libcni.GCArgs{ValidAttachments: valid})
	default:
		return fmt.Errorf("unknown command %q", args[0])
	}
}
